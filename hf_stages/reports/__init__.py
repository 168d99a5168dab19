"""Reports: finished folders and plans as text, pictures, pages and cards. No data, no model and no weights are read."""
