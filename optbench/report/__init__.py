"""What a person reads: terminal tables and the card of an exported artifact."""
