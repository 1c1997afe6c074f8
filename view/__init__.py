"""What is looked at: the player, GIFs, reports."""
