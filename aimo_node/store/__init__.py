"""What a node keeps in a database: SQLite files in its state folder."""
