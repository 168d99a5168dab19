"""Reports: show plans and finished folders as text, pictures, pages and cards. They read no data, model or weights."""
