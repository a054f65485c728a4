"""What every part stands on: settings, the database, the error tree, message types. No torch here."""
