//! What a key may take: requests, tokens and concurrency of its windows, and its account's credit.
