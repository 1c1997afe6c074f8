"""How the dataset that ships is made: body, motions, captions."""
