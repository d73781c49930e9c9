"""What the verbs share, one file a noun: docs/ARCHITECTURE.md says what each is."""
