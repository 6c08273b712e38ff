use margay_prompt::image::*; use margay_prompt::text::*; use std::time::Instant;
#[test] fn t() {
    let mut pieces: Vec<(String,f32,PieceKind)> = vec![("<unk>".into(),0.,PieceKind::Unknown),("<s>".into(),0.,PieceKind::Control),("</s>".into(),0.,PieceKind::Control)];
    for b in 0..256 { pieces.push((format!("<0x{b:02X}>"),0.,PieceKind::Byte)); }
    let mut seed=1u64; let mut seen=std::collections::HashSet::new();
    while pieces.len()<32000 { let mut w=String::new(); seed=seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407); let n=1+(seed>>60)%6; let mut s=seed; if (s>>33)&1==1 {w.push('▁');} for _ in 0..n { s=s.wrapping_mul(6364136223846793005).wrapping_add(1); w.push((b'a'+((s>>33)%26) as u8) as char);} if seen.insert(w.clone()) {let k=pieces.len(); pieces.push((w,-(k as f32),PieceKind::Normal));} }
    let m=SentencePieceModel{pieces,..Default::default()};
    let t=Instant::now(); let tok=Tokenizer::from_sentencepiece(&m).unwrap(); println!("build spm {:?}",t.elapsed());
    let text="the quick brown fox jumps over ".repeat(3300); let t=Instant::now(); let n=tok.encode(&text,EncodeOptions::default()).unwrap().len(); println!("encode {} KB -> {n} in {:?}",text.len()/1000,t.elapsed());
    let v=tok.to_gguf_vocab().unwrap(); let t=Instant::now(); let _=Tokenizer::from_gguf(&v).unwrap(); println!("from_gguf {:?}",t.elapsed());
    let p=Picture::filled(4000,3000,[1,2,3]).unwrap(); let t=Instant::now(); let _=preprocess(&p,&ImageSpec::llava_pad(336)).unwrap(); println!("preprocess 12Mpx pad {:?}",t.elapsed());
    let p=Picture::filled(640,480,[1,2,3]).unwrap(); let t=Instant::now(); let _=preprocess(&p,&ImageSpec::llava_pad(336)).unwrap(); println!("preprocess 640x480 {:?}",t.elapsed());
    let t=Instant::now(); for _ in 0..10 { ChatTemplate::builtin("vicuna_v1").unwrap().render(&[Message::user(1,"hi")],&RenderOptions::default()).unwrap(); } println!("template {:?}",t.elapsed()/10);
    let d=std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"),"/tests/golden/decode.safetensors")).unwrap(); let st=safetensors::SafeTensors::deserialize(&d).unwrap();
    for n in st.names() { if n.ends_with(".jpg")||n=="lossy.webp" { let b=std::fs::read(format!("{}/tests/golden/pictures/{n}",env!("CARGO_MANIFEST_DIR"))).unwrap(); let p=decode(&b,&ImageLimits::default()).unwrap(); let w=p.rgb().iter().zip(st.tensor(n).unwrap().data()).map(|(a,b)|a.abs_diff(*b)).max(); println!("{n} {w:?}"); } }
}
