"""What ranks tell each other: gathering with gradient, agreement, the launch."""
