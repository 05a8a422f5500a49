fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let path = std::env::args().nth(1).map(std::path::PathBuf::from);
    let config = fgm::config::Config::load(path.as_deref(), |k| std::env::var(k).ok())?;
    fgm::pipeline::run(config)
}
