"""What leaves the house: bundles and predictions."""
