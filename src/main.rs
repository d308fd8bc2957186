#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let get = |n: &str| args.iter().position(|a| a == n).map(|i| args[i + 1].clone());
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let flags = skygate::config::Flags { data: get("--data").map(Into::into), listen: get("--listen").map(|s| s.parse().unwrap()), admin: get("--admin").map(|s| s.parse().unwrap()) };
    let typed = get("--config").map(|p| skygate::config::Typed::read(p.as_ref()).unwrap()).unwrap_or_default();
    let checked = typed.check(flags, ".".as_ref()).unwrap();
    let rt = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    rt.block_on(async {
        let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
        let r = skygate::node::run(checked, async move { term.recv().await; }).await;
        if let Err(e) = r { eprintln!("error: {e}"); std::process::exit(1) }
    });
}
