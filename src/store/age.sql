-- What is old is looked for tenant by tenant, in the order by time.
DROP INDEX requests_by_age;
