"""HTTP as engines need it: to servers elsewhere and to a child's socket, read as it comes."""
