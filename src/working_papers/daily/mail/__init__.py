"""Outgoing e-mails: a queue in the database, a server or an outbox folder that takes them."""
