"""Pictures and pages that show how optimizers go, computed by the package itself."""
