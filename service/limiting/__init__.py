"""How much one key may ask for: requests and tokens a minute, and requests at once."""
