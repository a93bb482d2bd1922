"""Programs that engines start: run, watched, heard, and surely ended, whoever is killed."""
