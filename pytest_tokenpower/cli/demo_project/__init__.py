"""The files of the demo's scratch repository; they are copied out and run there, never imported here."""
