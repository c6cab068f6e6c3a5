"""What any program needs of the machine: memory, time, signals, the terminal."""
