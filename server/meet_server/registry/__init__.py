"""Which controls there are: whether one may come in (`admission`), and which are loaded (`live`)."""
