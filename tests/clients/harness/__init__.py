"""What runs real harnesses against a cluster of real processes."""
