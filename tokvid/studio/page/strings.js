// All texts of the page, in two languages. {names} are filled in.

export const STRINGS = {
  en: {
    skip: "Skip to the story",
    weights: "Weights",
    other_language: "中文",
    theme_system: "Theme: as the system",
    theme_light: "Theme: light",
    theme_dark: "Theme: dark",
    story: "The story",
    stage: "The video",
    history: "History",
    offline: "The studio doesn't answer. Is `tokvid studio` still running? This page goes on when it does.",

    welcome_title: "Tell a story, scene by scene",
    welcome_text: "Each scene has a prompt. One continuous video without cuts is generated from all of them, on this machine.",
    welcome_1: "Describe what the scene shows, or load the example.",
    welcome_2: "Press “Generate”. Frames appear as they are generated.",
    welcome_3: "Change a scene or generate it again: earlier scenes stay.",
    load_example: "Load the example",
    about_shapes: "These weights know moving shapes only: small and large circles, squares, triangles and stars in red, green, blue, yellow, white and purple. Prompts may be English or Chinese.",
    about_robots: "These weights were trained on robot arms at tables, at 64×64 pixels. Pictures are blurred. A story that begins with a picture works best.",
    about_other: "Prompts similar to the captions that these weights were trained on work best.",

    opening_title: "Opening",
    opening_none: "None: the first scene starts from its prompt.",
    opening_choose: "Choose a picture or a clip",
    opening_drop: "or drop it here · PNG, JPEG, MP4, GIF, … up to {mib} MiB",
    opening_picture: "Picture, {width}×{height}: the first frame",
    opening_clip: "Clip, {width}×{height}, {seconds} s: the story continues it",
    remove: "Remove",
    uploading: "Uploading {percent} %",
    checking: "Checking the file…",

    scene: "Scene {n}",
    scene_time: "{from} – {to}",
    prompt: "Prompt of scene {n}",
    prompt_hint: "What the scene shows, for example: {example}",
    seconds: "Seconds",
    guidance: "Guidance",
    guidance_hint: "Classifier-free guidance scale. 1 disables it; a higher scale follows the prompt more closely, with less variety.",
    seed: "Seed",
    new_seed: "Another seed",
    move_up: "Move scene {n} up",
    move_down: "Move scene {n} down",
    duplicate: "Duplicate scene {n}",
    delete_scene: "Delete scene {n}",
    deleted_scene: "Scene {n} is deleted.",
    undo: "Undo",
    close: "Close",
    add_scene: "Add a scene",
    again: "Generate again",
    again_hint: "With another seed. Earlier scenes stay; later ones continue from it.",
    variants: "Four variants",
    variants_hint: "Four seeds side by side, to choose from",
    variants_title: "Choose a variant of scene {n}",
    variant: "Variant {letter}",
    choose: "Choose {letter}",
    close_variants: "Close without choosing",
    state_new: "new",
    state_changed: "changed",
    state_follows: "follows a change",
    state_done: "done",
    state_making: "generating",
    state_waiting: "waiting",

    settings: "More settings",
    fps: "Frames per second",
    negative: "Negative prompt",
    negative_hint: "What the video should not show; has no effect at guidance 1",
    new_story: "New story",
    new_story_done: "The editor has a new story.",

    make: "Generate",
    total: "{scenes} · {seconds} s · {frames} frames",
    scenes_one: "1 scene",
    scenes_many: "{n} scenes",
    stop: "Stop",
    go_on: "Continue",
    status_waiting: "Waiting; {n} before it",
    status_next: "Waiting, next in line",
    status_loading: "Loading the weights. The first time, programs are compiled, which takes up to a minute.",
    status_making: "{done} of {total} frames",
    status_left: "about {time} left",
    status_saving: "Writing the files",
    status_done: "Done in {time}",
    status_stopped: "Stopped after {done} of {total} frames",
    status_stopped_early: "Stopped before the first frame",
    status_failed: "Failed: {error}",
    made: "The video is done.",
    already: "This story has been generated already. Change a scene, or generate one again.",
    empty_prompt: "Scene {n} has no prompt yet: write one, or delete the scene.",
    out_of_range: "{field} of scene {n} should be {low} to {high}.",

    stage_empty: "The video appears here, frame by frame.",
    play: "Play",
    pause: "Pause",
    position: "Position in the video",
    download_mp4: "MP4",
    download_gif: "GIF",
    download_sheet: "Contact sheet",
    download_story: "Story file",
    download_opening: "Opening",
    reproduce: "Generate it with the command line or Python",
    reproduce_text: "The same weights and story file give the same bytes.",

    history_empty: "Generated videos are kept here.",
    history_open: "Show video {n}",
    history_delete: "Delete video {n}",
    history_delete_sure: "Delete video {n} and its files?",
    history_edit: "Edit the scenes of video {n}",
    history_edited: "The scenes of video {n} are in the editor.",
    history_more: "Show older ones",

    error_offline: "The studio doesn't answer. Is `tokvid studio` still running?",
    error_large: "The file is larger than {mib} MiB. Choose a smaller one, or cut it.",
    error_unreadable: "This file cannot be used: {message}",
    error_token: "Open the link that `tokvid studio` printed; it has a token.",
    error_missing: "No longer there: {message}",
  },

  zh: {
    skip: "跳到故事",
    weights: "模型",
    other_language: "English",
    theme_system: "主题：跟随系统",
    theme_light: "主题：浅色",
    theme_dark: "主题：深色",
    story: "故事",
    stage: "视频",
    history: "历史",
    offline: "没有连上服务。tokvid studio 还在运行吗？连上后本页会自动继续。",

    welcome_title: "一幕一幕地讲故事",
    welcome_text: "每一幕有一句提示词。所有场景在本机生成为一段连续的视频，没有剪切。",
    welcome_1: "写下想看到的画面，或载入示例。",
    welcome_2: "点击“生成”，画面会逐帧出现。",
    welcome_3: "可以修改或重新生成某一幕，它之前的场景保持不变。",
    load_example: "载入示例",
    about_shapes: "这个模型只认识运动的图形：大小两种的圆形、方形、三角形和星形，红、绿、蓝、黄、白、紫六种颜色。中英文都可以。",
    about_robots: "这个模型见过几百段桌面机械臂的视频，画面为 64×64 像素，会比较模糊。从一张图片开始效果最好。",
    about_other: "模型只认识训练过的内容；提示词越接近训练时的说明文字，效果越好。",

    opening_title: "开头",
    opening_none: "没有开头：第一幕直接由提示词生成。",
    opening_choose: "选择图片或视频片段",
    opening_drop: "或拖到这里 · PNG、JPEG、MP4、GIF 等，最大 {mib} MiB",
    opening_picture: "图片，{width}×{height}：作为第一帧",
    opening_clip: "片段，{width}×{height}，{seconds} 秒：故事接着它继续",
    remove: "移除",
    uploading: "正在上传 {percent}%",
    checking: "正在检查文件…",

    scene: "第 {n} 幕",
    scene_time: "{from} – {to}",
    prompt: "第 {n} 幕的提示词",
    prompt_hint: "想看到的画面，例如：{example}",
    seconds: "秒数",
    guidance: "引导强度",
    guidance_hint: "无分类器引导的强度。1 表示关闭；越大越贴近提示词，变化越少。",
    seed: "随机种子",
    new_seed: "换一个种子",
    move_up: "上移第 {n} 幕",
    move_down: "下移第 {n} 幕",
    duplicate: "复制第 {n} 幕",
    delete_scene: "删除第 {n} 幕",
    deleted_scene: "已删除第 {n} 幕。",
    undo: "撤销",
    close: "关闭",
    add_scene: "添加一幕",
    again: "重新生成",
    again_hint: "换一个种子。之前的场景不变，之后的场景接着它继续。",
    variants: "四个版本",
    variants_hint: "用四个种子并排生成，供你挑选",
    variants_title: "选择第 {n} 幕的版本",
    variant: "版本 {letter}",
    choose: "选择 {letter}",
    close_variants: "关闭，不选择",
    state_new: "未生成",
    state_changed: "已修改",
    state_follows: "随前面的修改",
    state_done: "已完成",
    state_making: "生成中",
    state_waiting: "等待中",

    settings: "更多设置",
    fps: "每秒帧数",
    negative: "反向提示词",
    negative_hint: "不想看到的内容；引导强度为 1 时无效",
    new_story: "新故事",
    new_story_done: "已开始新故事。",

    make: "生成",
    total: "{scenes} · {seconds} 秒 · {frames} 帧",
    scenes_one: "1 幕",
    scenes_many: "{n} 幕",
    stop: "停止",
    go_on: "继续",
    status_waiting: "排队中，前面还有 {n} 个",
    status_next: "排队中，下一个就是",
    status_loading: "正在载入模型。第一次需要编译，最多一分钟。",
    status_making: "{done} / {total} 帧",
    status_left: "约剩 {time}",
    status_saving: "正在写文件",
    status_done: "已完成，用时 {time}",
    status_stopped: "已停止，完成 {done} / {total} 帧",
    status_stopped_early: "在第一帧之前已停止",
    status_failed: "生成失败：{error}",
    made: "视频已完成。",
    already: "这个故事已经生成过。请修改或重新生成某一幕。",
    empty_prompt: "第 {n} 幕还没有提示词：请填写，或删除这一幕。",
    out_of_range: "第 {n} 幕的{field}应在 {low} 到 {high} 之间。",

    stage_empty: "视频会逐帧出现在这里。",
    play: "播放",
    pause: "暂停",
    position: "播放位置",
    download_mp4: "MP4",
    download_gif: "GIF",
    download_sheet: "缩略图",
    download_story: "故事文件",
    download_opening: "开头文件",
    reproduce: "用命令行或 Python 生成同样的视频",
    reproduce_text: "用同样的模型和故事文件，得到的字节完全相同。",

    history_empty: "生成的视频会保存在这里。",
    history_open: "显示视频 {n}",
    history_delete: "删除视频 {n}",
    history_delete_sure: "删除视频 {n} 及其文件？",
    history_edit: "编辑视频 {n} 的场景",
    history_edited: "视频 {n} 的场景已放进编辑器。",
    history_more: "显示更早的",

    error_offline: "没有连上服务。tokvid studio 还在运行吗？",
    error_large: "文件超过 {mib} MiB。请换小一点的文件，或剪短。",
    error_unreadable: "无法使用这个文件：{message}",
    error_token: "请打开 tokvid studio 打印的带令牌的链接。",
    error_missing: "内容已不存在。{message}",
  },
};

let language = "en";

export function chooseLanguage(name) {
  language = name in STRINGS ? name : "en";
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
}

export const languageNow = () => language;

export function t(key, values = {}) {
  const text = STRINGS[language][key] ?? STRINGS.en[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

export const has = (key) => key in STRINGS.en;

// 75 → 1 min 15 s
export function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const [minutes, rest] = [Math.floor(whole / 60), whole % 60];
  if (language === "zh") return minutes ? `${minutes} 分 ${rest} 秒` : `${rest} 秒`;
  return minutes ? `${minutes} min ${rest} s` : `${rest} s`;
}

// 75.5 → 1:15.5
export function clock(seconds) {
  const tenths = Math.round(seconds * 10);
  const rest = (tenths % 600) / 10;
  return `${Math.floor(tenths / 600)}:${rest < 10 ? "0" : ""}${Number.isInteger(rest) ? rest : rest.toFixed(1)}`;
}
