//! Compiles the `.proto` files without a `protoc` of the system.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(["atoll/v1/agents.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".atoll.v1")
        .skip_debug(["Key"])
        .build_transport(false)
        .codec_path("crate::codec::FrameCodec")
        .compile_fds(descriptors)?;
    Ok(())
}
