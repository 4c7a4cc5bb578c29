"""What images there are, and their pixels."""
