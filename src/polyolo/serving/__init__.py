"""The YOLO image: what runs inside one tenant's runtime. No database, no other tenants."""
