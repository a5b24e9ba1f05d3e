"""The engines that need no server: SQLite, a folder, this process, tantivy."""
