"""What is done to the files of the repository when a wheel is built."""
