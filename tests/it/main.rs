mod projection;

mod harness {
    pub fn postgres_url() -> String {
        "postgres://postgres@127.0.0.1:5471/postgres".to_owned()
    }
}
