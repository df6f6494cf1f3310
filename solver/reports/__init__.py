"""What is written for people and programs: result files, tables, figures, pictures, pages."""
