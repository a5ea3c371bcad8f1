"""Write a config for a user's data: a shipped detector, filled in and put into words."""
