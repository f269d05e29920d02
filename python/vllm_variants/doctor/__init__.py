"""What is amiss on this machine, and the command that helps."""
