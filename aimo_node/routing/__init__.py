"""The decision, pure: who is there (`table`) and who should answer (`policy`)."""
