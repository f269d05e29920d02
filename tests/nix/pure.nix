{ library }: { }
