"""What a score is worth: NumPy in, numbers out."""
