"""What people and machines read: terminal table, JUnit properties, JSON."""
