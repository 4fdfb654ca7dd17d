"""`statebelt demo`: everything at once, on one machine, for one look."""
