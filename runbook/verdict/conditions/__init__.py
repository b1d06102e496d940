"""The named conditions of which causes are made, by the view that decides them."""
