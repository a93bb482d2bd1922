"""One engine, one file, each with `create(settings) -> Engine`; they never see each other."""
