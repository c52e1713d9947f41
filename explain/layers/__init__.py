"""Which layer a map is made at: its layout, a survey of the candidates, the choice."""
