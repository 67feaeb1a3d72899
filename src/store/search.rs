//! Accounts and keys by what people remember of them: a part of a name or of an address, or an id.

use sqlx::FromRow;

use super::engine::query_as;
use super::{Account, Key, Store, StoreError};

#[derive(FromRow)]
struct Found {
    id: String,
}

/// What `LIKE … ESCAPE '\'` takes for a part of a text, whatever is in it.
fn part(text: &str) -> String {
    let text = text.to_lowercase();
    let escaped: String =
        text.chars().flat_map(|c| matches!(c, '%' | '_' | '\\').then_some('\\').into_iter().chain([c])).collect();
    format!("%{escaped}%")
}

impl Store {
    /// At most `limit` accounts, oldest first, from the first or from those after the account of that id: of those whose id it is, or
    /// of which it is a part of the name or of the address of somebody who signs in for them.
    pub async fn search_accounts(
        &self,
        text: &str,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<Account>, StoreError> {
        const SELECT: &str = "SELECT a.id FROM accounts a \
             WHERE a.number > COALESCE((SELECT number FROM accounts WHERE id = $1), -1) AND (a.id = $2 \
             OR LOWER(a.name) LIKE $3 ESCAPE '\\' OR a.id IN (SELECT account_id FROM users WHERE email LIKE $3 ESCAPE '\\')) \
             ORDER BY a.number LIMIT $4";
        let mut accounts = Vec::new();
        for Found { id } in self.found(SELECT, text, after, limit).await? {
            accounts.push(self.account(&id).await?);
        }
        Ok(accounts)
    }

    /// The same of keys: of those whose id it is or whose account's, or of whose name it is a part.
    pub async fn search_keys(&self, text: &str, after: Option<&str>, limit: u32) -> Result<Vec<Key>, StoreError> {
        const SELECT: &str = "SELECT k.id FROM api_keys k \
             WHERE k.number > COALESCE((SELECT number FROM api_keys WHERE id = $1), -1) \
             AND (k.id = $2 OR k.account_id = $2 OR LOWER(k.name) LIKE $3 ESCAPE '\\') ORDER BY k.number LIMIT $4";
        let mut keys = Vec::new();
        for Found { id } in self.found(SELECT, text, after, limit).await? {
            keys.push(self.key(&id).await?);
        }
        Ok(keys)
    }

    async fn found(
        &self,
        sql: &'static str,
        text: &str,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<Found>, StoreError> {
        let found = query_as(sql).bind(after.unwrap_or_default()).bind(text).bind(part(text)).bind(i64::from(limit));
        Ok(found.fetch_all(&self.pool).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::Fixture;
    use super::super::{NewUser, Role};

    #[tokio::test]
    async fn accounts_and_keys_are_found_by_what_people_remember() {
        let fixture = Fixture::with_credit("5").await;
        let store = &fixture.store;
        let other = store.create_account("50% of B_b", "free", 1).await.unwrap().id;
        let new =
            NewUser { email: "grace@example.com", role: Role::Customer, account_id: Some(&other), password: None };
        store.create_user(&new, 1).await.unwrap();
        let (ada, both) = (&fixture.account_id, [&*fixture.account_id, &*other]);
        for (text, found) in [
            ("", &both[..]),
            ("aDa", &both[..1]),
            (ada, &both[..1]),
            ("GRACE@", &both[1..]),
            ("50%", &both[1..]),
            ("b_B", &both[1..]),
            ("%", &both[1..]),
            ("\\", &[]),
            ("' OR 1=1 --", &[]),
        ] {
            let accounts = store.search_accounts(text, None, 9).await.unwrap();
            assert_eq!(accounts.iter().map(|account| &*account.id).collect::<Vec<_>>(), found, "{text}");
        }
        assert_eq!(store.search_accounts("", Some(ada), 9).await.unwrap()[0].id, other);
        for (text, count) in [("LAP", 1), (ada, 1), (&*fixture.key_id, 1), ("", 1), (&*other, 0), ("desktop", 0)] {
            assert_eq!(store.search_keys(text, None, 9).await.unwrap().len(), count, "{text}");
        }
        assert!(store.search_keys("", Some(&fixture.key_id), 9).await.unwrap().is_empty());
    }
}
