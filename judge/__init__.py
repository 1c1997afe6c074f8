"""What measures a motion: metrics, and the networks that judge."""
