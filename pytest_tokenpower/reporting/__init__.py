"""Text and files for people: terminal table, JUnit properties, doctor and history pages."""
