"""Networks from and to .pth files."""
