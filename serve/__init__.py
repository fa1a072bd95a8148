"""HTTP over an export. Run from the checkout: `serve run serve.app:app export=exports/tiny`."""
