"""What breaks between the application and PostgreSQL."""
