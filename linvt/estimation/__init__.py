"""What a corpus will cost to extract and to train on, with the cache and without: before anything is rented."""
