"""What this machine lacks, and the command that helps."""
