"""Which controls there are: whether one may come in (`admission`), which are loaded (`live`), and which mixes of
them the engine keeps (`mixes`)."""
