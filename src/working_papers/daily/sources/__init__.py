"""The sources: functions that turn a file or a service into a stream of records, good and bad."""
