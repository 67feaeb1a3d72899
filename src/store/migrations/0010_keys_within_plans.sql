-- A key whose limits are at most its account's plan's, whichever plan that is then: customers make such. An operator's may have more.
ALTER TABLE api_keys ADD COLUMN within_plan BOOLEAN NOT NULL DEFAULT FALSE;
